#!/usr/bin/python3
# timeout: 240
"""portalbd-csi's gRPC server against another implementation's clients and against rubbish: Python's
grpcio for well-formed calls, raw sockets for the rest. One process must survive all of it; then it is
stopped again and again under load."""

import concurrent.futures
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import grpc

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("PORTALBD_BUILD", os.path.join(ROOT, "build")))
WORK = tempfile.mkdtemp(prefix="rpc-", dir=os.environ.get("TMPDIR", "/tmp"))
SOCKET = os.path.join(WORK, "csi.sock")
Code = grpc.StatusCode

stubs = os.path.join(WORK, "stubs")
os.mkdir(stubs)
subprocess.run(["protoc", f"-I{ROOT}/proto", "-I/usr/include", f"--python_out={stubs}", "csi.proto"], check=True)
sys.path.insert(0, stubs)
import csi_pb2 as csi  # noqa: E402  pylint: disable=wrong-import-position,import-error

results = {"passed": 0, "failed": 0}


def check(name, condition, detail=""):
    results["passed" if condition else "failed"] += 1
    if not condition:
        print(f"FAILED: {name}: {detail}")


def start(*options):
    log = open(os.path.join(WORK, "csi.log"), "ab")
    process = subprocess.Popen(
        [f"{BUILD}/bin/portalbd-csi", "--endpoint", f"unix://{SOCKET}", "--mode", "all",
         "--pools", f"{WORK}/pools.conf", "--agent", f"unix://{WORK}/agent.sock", *options],
        stdout=log, stderr=log)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(SOCKET)
                return process
            except OSError:
                time.sleep(0.02)
    raise RuntimeError("the driver does not listen")


def channel(**options):
    options = {"grpc.use_local_subchannel_pool": 1, "grpc.enable_retries": 0, **options}
    return grpc.insecure_channel(f"unix:{SOCKET}", options=list(options.items()))


def serialize(message):
    return message if isinstance(message, bytes) else message.SerializeToString()


def call(ch, method, request, response=None, **options):
    """(code, details or response)"""
    stub = ch.unary_unary(method, request_serializer=serialize,
                          response_deserializer=response.FromString if response else None)
    try:
        return Code.OK, stub(request, **options)
    except grpc.RpcError as e:
        return e.code(), e.details()


PROBE = "/csi.v1.Identity/Probe"
INFO = "/csi.v1.Identity/GetPluginInfo"
CREATE = "/csi.v1.Controller/CreateVolume"
DELETE = "/csi.v1.Controller/DeleteVolume"


def test_interop():
    ch = channel()
    code, info = call(ch, INFO, csi.GetPluginInfoRequest(), csi.GetPluginInfoResponse, timeout=5)
    check("GetPluginInfo", code is Code.OK and info.name == "csi.portalbd.dev" and info.vendor_version, (code, info))
    code, probe = call(ch, PROBE, csi.ProbeRequest(), csi.ProbeResponse)
    check("Probe", code is Code.OK and probe.ready.value, (code, probe))
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        code, _ = call(ch, DELETE, csi.DeleteVolumeRequest(volume_id="x" * 100), compression=compression)
        check(f"compressed request {compression}", code is Code.OK, code)
    for method in ("/csi.v1.Identity/Nonsense", "/no.such.Service/Method", "/csi.v1.Controller/GetCapacity",
                   "/csi.v1.SnapshotMetadata/GetMetadataAllocated", "/", "rubbish"):
        code, text = call(ch, method, b"")
        check(f"unknown method {method}", code is Code.UNIMPLEMENTED, (code, text))
    for authority in ("localhost", "%2Ftmp%2Fs.sock", "a/b", "/tmp/x.sock"):
        code, text = call(channel(**{"grpc.default_authority": authority}), PROBE, b"", timeout=5)
        check(f"authority {authority}", code is Code.OK, (code, text))
    no_request = ch.stream_unary(PROBE, request_serializer=serialize)
    try:
        no_request(iter(()))
        check("a call without a request", False, "OK")
    except grpc.RpcError as e:
        check("a call without a request", e.code() is Code.UNIMPLEMENTED, e)


def test_malformed():
    ch = channel()
    for name, body in (("truncated", b"\x0a\xff"), ("wire type", b"\x0f"), ("field 0", b"\x02\x00"),
                       ("UTF-8", b"\x0a\x02\xc3\x28"), ("NUL", b"\x0a\x03a\0b"), ("group", b"\x0b\x0c"),
                       ("number for a string", b"\x08\x01"), ("length", b"\x0a\xff\xff\xff\xff\x0f")):
        code, text = call(ch, CREATE, body)
        check(f"malformed: {name}", code is Code.INTERNAL, (code, text))
    generator = random.Random(1)
    codes = set()
    for _ in range(1500):
        body = bytes(generator.choice((generator.randrange(256), generator.randrange(48)))
                     for _ in range(generator.randrange(60)))
        codes.add(call(ch, CREATE, body)[0])
    check("random requests", codes <= {Code.INTERNAL, Code.INVALID_ARGUMENT}, codes)
    valid = csi.CreateVolumeRequest(name="n", parameters={"pool": "main", "": "x"}, secrets={"k": "hunter2"})
    valid.volume_capabilities.add().mount.fs_type = "ext4"
    valid = valid.SerializeToString()
    for _ in range(1500):
        body = bytearray(valid)
        for _ in range(generator.randrange(1, 4)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        codes.add(call(ch, CREATE, bytes(body))[0])
    check("mutated requests", Code.UNKNOWN not in codes and Code.UNAVAILABLE not in codes, codes)


def test_secrets_stay_out_of_the_log():
    request = csi.CreateVolumeRequest(name="n", secrets={"key": "correct-horse"})
    request.volume_capabilities.add(access_mode={"mode": 7}).mount.fs_type = "ext4"
    code, text = call(channel(), CREATE, request)
    check("unknown secret", code is Code.INVALID_ARGUMENT and "correct-horse" not in text, (code, text))
    with open(os.path.join(WORK, "csi.log"), encoding="utf-8", errors="replace") as f:
        log = f.read()
    check("secrets are not logged", "correct-horse" not in log and "***" in log)


def test_oversize():
    ch = channel(**{"grpc.max_send_message_length": 1 << 30})
    code, text = call(ch, CREATE, csi.CreateVolumeRequest(name="x" * (2 << 20)))
    check("2 MiB request", code is Code.RESOURCE_EXHAUSTED, (code, text))
    code, text = call(ch, CREATE, csi.CreateVolumeRequest(name="x" * (40 << 20)), compression=grpc.Compression.Gzip)
    check("40 MiB in gzip", code is Code.RESOURCE_EXHAUSTED, (code, text))
    code, text = call(ch, CREATE, b"\x1a\x00" * 500000)
    check("500,000 empty messages", code is Code.RESOURCE_EXHAUSTED, (code, text))
    code, text = call(ch, CREATE, b"".join(b"\x1a" + bytes([n]) + b"\x1a\x00" * (n // 2) for n in (100,) * 1000))
    check("nested rubbish", code in (Code.INTERNAL, Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED), (code, text))
    code, text = call(ch, DELETE, csi.DeleteVolumeRequest(volume_id="é" * 30000))
    check("long text in an error", code is Code.INVALID_ARGUMENT and len(text.encode()) <= 1024, (code, len(text or "")))


def test_rubbish_connections(process):
    generator = random.Random(2)
    idle = []
    for number in range(300):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(1)
            try:
                s.connect(SOCKET)
                preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if number % 2 else b""
                s.sendall(preface + bytes(generator.randrange(256) for _ in range(generator.randrange(200))))
                if number % 5 == 0:
                    s.recv(100)
            except OSError:
                pass
    for _ in range(100):
        s = socket.socket(socket.AF_UNIX)
        s.connect(SOCKET)
        idle.append(s)
    code, text = call(channel(), PROBE, b"", timeout=10)
    check("after 300 rubbish and with 100 idle connections", code is Code.OK, (code, text))
    for s in idle:
        s.close()
    check("alive", process.poll() is None)


def test_deadlines_and_cancellation():
    """The agent's socket is one that never answers."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(os.path.join(WORK, "agent.sock"))
        mute.listen(16)
        ch = channel()
        info = "/csi.v1.Node/NodeGetInfo"
        began = time.monotonic()
        code, text = call(ch, info, b"", timeout=0.5)
        check("deadline", code is Code.DEADLINE_EXCEEDED and time.monotonic() - began < 3, (code, text))
        futures = [ch.unary_unary(info).future(b"") for _ in range(40)]
        time.sleep(0.3)
        for future in futures:
            future.cancel()
        began = time.monotonic()
        code, text = call(ch, PROBE, b"", timeout=10)
        check("workers are free after cancellation", code is Code.OK and time.monotonic() - began < 5, (code, text))
    os.unlink(os.path.join(WORK, "agent.sock"))
    code, text = call(ch, info, b"", timeout=10)
    check("no agent", code is Code.UNAVAILABLE, (code, text))


def test_many_at_once():
    ch = channel()
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        codes = list(pool.map(lambda _: call(ch, PROBE, b"", timeout=30)[0], range(2000)))
    check("2,000 calls of 32 clients", set(codes) == {Code.OK}, set(codes))


def test_socket_ownership(process):
    second = subprocess.run([f"{BUILD}/bin/portalbd-csi", "--endpoint", f"unix://{SOCKET}", "--mode", "node"],
                            capture_output=True, text=True, timeout=30)
    check("a second driver on the same socket is refused", second.returncode == 1 and "another process" in second.stderr,
          second.stderr)
    code, text = call(channel(), PROBE, b"", timeout=5)
    check("the first still serves", code is Code.OK, (code, text))
    check("mode of the socket", os.stat(SOCKET).st_mode & 0o777 == 0o600, oct(os.stat(SOCKET).st_mode))
    check("no other file beside it", [n for n in os.listdir(WORK) if "csi.sock" in n] == ["csi.sock"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    check("a killed driver leaves its socket", os.path.exists(SOCKET))


def test_stop_under_load(rounds):
    bad = []
    for number in range(rounds):
        process = start("--grace", random.choice(("0s", "50ms", "2s")), "--workers", random.choice(("1", "4", "16")))
        ch = channel()
        futures = [ch.unary_unary(random.choice((PROBE, INFO, DELETE))).future(b"") for _ in range(60)]
        time.sleep(random.random() * 0.03)
        process.terminate()
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            status = "hangs"
        if status != 0:
            bad.append((number, status))
        for future in futures:
            future.exception()  # they all end
        ch.close()
        if os.path.exists(SOCKET):
            bad.append((number, "socket left"))
    check(f"{rounds} stops under load", not bad, bad)


def main():
    os.mkdir(os.path.join(WORK, "pool"))
    with open(os.path.join(WORK, "pools.conf"), "w", encoding="ascii") as f:
        f.write(f"[main]\nurl = file://{WORK}/pool\n")
    process = start("--log-level", "debug")
    try:
        test_interop()
        test_malformed()
        test_secrets_stay_out_of_the_log()
        test_oversize()
        test_rubbish_connections(process)
        test_deadlines_and_cancellation()
        test_many_at_once()
        test_socket_ownership(process)
        test_stop_under_load(20)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if results["failed"]:
            with open(os.path.join(WORK, "csi.log"), encoding="utf-8", errors="replace") as f:
                print(f.read()[-4000:])
        shutil.rmtree(WORK)
    print(f"{results['passed']} passed, {results['failed']} failed, 0 skipped")
    return 1 if results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
