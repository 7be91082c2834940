#!/usr/bin/python3
"""Stands in for the node agent: its control socket without devices behind it. It takes the agent's
arguments and keeps what is "attached" in memory. The file $STANDIN says how it behaves, read again at
each request: {verb: {"busy": N, "code": ..., "text": ..., "end": true}} makes N answers BUSY, then the
error, or ends the process; "slow_start": seconds; "refuse": a last word, before it ends at once;
"pools": another pool file than the one it was given. What it was asked is in $STANDIN.log, a line
each; its starts among it.
"""
import argparse
import json
import os
import socket
import sys
import threading
import time


class Agent:
    def __init__(self, args, control):
        self.args, self.control, self.devices, self.busy = args, control, {}, {}
        self.lock = threading.Lock()

    def behaviour(self):
        try:
            with open(self.control, encoding="utf-8") as f:
                return json.load(f)
        except FileNotFoundError:
            return {}

    def log(self, entry):
        with open(self.control + ".log", "a", encoding="utf-8") as f:
            f.write(json.dumps(entry) + "\n")

    def answer(self, verb, args):
        """A result, or (code, text)."""
        self.log({"verb": verb, "args": args})
        how = self.behaviour().get(verb, {})
        if how.get("end"):
            os.unlink(self.control)
            os._exit(0)
        if self.busy.get(verb, 0) < how.get("busy", 0):
            self.busy[verb] = self.busy.get(verb, 0) + 1
            if how.get("state") and args["volume"] in self.devices:
                self.devices[args["volume"]]["state"] = how["state"]
            time.sleep(min(args.get("wait_ms", 0) / 1000, how.get("sleep", 0.1)))
            return "BUSY", how.get("text", "not done yet")
        if "code" in how:
            return how["code"], how["text"]
        return getattr(self, "do_" + verb)(args)

    def do_info(self, _):
        return {"version": "0", "node_id": os.environ.get("NODE_ID", socket.gethostname()),
                "pools": self.behaviour().get("pools", self.args.pools), "backends": [],
                "default_backend": "fuse"}

    def do_attach(self, args):
        row = {"volume": args["volume"], "state": "attached", "device": f"/dev/none{len(self.devices)}",
               "backend": args.get("backend", "fuse"), "publish_epoch": args["publish_epoch"],
               "size_bytes": 1 << 26, "read_only": args["read_only"], "daemon_pid": 1, "restarts": 0,
               "message": ""}
        self.devices.setdefault(args["volume"], row)
        return self.devices[args["volume"]]

    def do_detach(self, args):
        self.devices.pop(args["volume"], None)
        return {}

    def do_devices(self, args):
        """In pages of two."""
        left = [r for v, r in sorted(self.devices.items()) if v > args.get("after", "")]
        return {"devices": left[:2]}

    def do_upgrade(self, args):
        return {"pause_ms": 7} if args["volume"] in self.devices else ("NOT_FOUND", "not attached")

    def serve(self, connection):
        with connection, connection.makefile("rw", encoding="utf-8") as f:
            for line in f:
                request = json.loads(line)
                with self.lock:
                    result = self.answer(request["verb"], request.get("args", {}))
                reply = {"v": 1, "id": request["id"]}
                if isinstance(result, tuple):
                    reply["error"] = {"code": result[0], "text": result[1]}
                else:
                    reply["result"] = result
                f.write(json.dumps(reply) + "\n")
                f.flush()


def main():
    parser = argparse.ArgumentParser()
    for name in ("run-dir", "pools", "endpoint"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--exit-when-idle", action="store_true")
    agent = Agent(parser.parse_args(), os.environ["STANDIN"])
    how = agent.behaviour()
    agent.log({"start": sys.argv[1:], "stdin": os.readlink("/proc/self/fd/0"), "cwd": os.getcwd(),
               "leader": os.getsid(0) == os.getpid(), "pid": os.getpid()})
    if "refuse" in how:
        sys.exit(how["refuse"])
    time.sleep(how.get("slow_start", 0))
    os.chdir(agent.args.run_dir)
    if os.path.exists("node-agent.sock"):
        os.unlink("node-agent.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind("node-agent.sock")
    server.listen(8)
    while True:
        threading.Thread(target=agent.serve, args=(server.accept()[0],), daemon=True).start()


main()
