#!/usr/bin/python3
"""Adds up JUnit reports of csi-sanity, and compares what was skipped with the list of what may be.

    sanity_report.py SKIPS REPORT...

SKIPS has a line "name: reason" for each spec whose capability the driver does not declare."""

import re
import sys
import xml.etree.ElementTree as ElementTree


def short_name(name):
    """"[It] A [Controller Server] b" -> "A b" """
    return re.sub(r"\s+", " ", re.sub(r"\[[^]]*\]", "", name)).strip()


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        lines = [line.strip() for line in f]
    allowed = dict(line.split(": ", 1) for line in lines if line and not line.startswith("#"))
    passed = failed = skipped = 0
    for path in sys.argv[2:]:
        seen = set()
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            name = short_name(case.get("name"))
            status = case.get("status")
            if not case.get("name").startswith("[It]"):
                if status not in ("passed", "skipped"):
                    print(f"FAILED: {name}")
                    failed += 1
                continue
            if status == "passed":
                passed += 1
            elif status in ("skipped", "pending"):
                skipped += 1
                seen.add(name)
                if name not in allowed:
                    print(f"FAILED: skipped, but not in the list: {name}")
                    failed += 1
            else:
                failed += 1
                where = case.find("failure")
                print(f"FAILED: {name}: {where.get('message') if where is not None else status}")
        for name in sorted(set(allowed) - seen):
            print(f"FAILED: in the list, but not skipped: {name}")
            failed += 1
        for name in sorted(seen & set(allowed)):
            print(f"skipped: csi-sanity: {name}: {allowed[name]}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
