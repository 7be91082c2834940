#!/usr/bin/env python3
"""Prints what happened to each spec that a suite selected, sorted: report.py DRIVER JUNIT. Exits 1 if one failed; why
each failed is told on standard error."""
import sys
import xml.etree.ElementTree


def main():
    driver, path = sys.argv[1:]
    lines, failed = [], 0
    for case in xml.etree.ElementTree.parse(path).getroot().iter("testcase"):
        name = case.get("name")
        trouble = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if trouble is not None:
            failed += 1
            print(f"FAIL {name} ({float(case.get('time')):.0f} s)\n     {(trouble.get('message') or '')[:600]}",
                  file=sys.stderr)
            result = "failed"
        elif skipped is None:
            result = "passed"
        elif (skipped.get("message") or "").startswith("skipped - "):
            result = "skipped"
        else:
            continue  # not selected
        if name.startswith("[It] "):
            lines.append(f"{driver} {result} {' '.join(name[5:].split())}")
    print("\n".join(sorted(lines)))
    sys.exit(1 if failed or not lines else 0)


if __name__ == "__main__":
    main()
