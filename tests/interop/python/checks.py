"""Assertions that count, and waiting for a state."""

import sys
import time

count = 0


def check(condition, what, *facts):
    global count
    if not condition:
        print(f"FAIL: {what}", *facts, sep="\n  ", file=sys.stderr)
        # Clients keep threads that would hold a plain exit back.
        sys.stderr.flush()
        import os

        os._exit(1)
    count += 1


def same(what, wanted, got):
    check(wanted == got, what, f"wanted: {wanted!r}", f"got:    {got!r}")


def eventually(seconds, what, condition):
    end = time.monotonic() + 3 * seconds
    while not (got := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    check(got, f"{what}: not within {seconds} s")
    return got


def refused(what, kind, act, text=""):
    try:
        got = act()
    except kind as error:
        check(text in str(error), what, f"wanted: {text!r}", f"got:    {error!r}")
        return error
    check(False, what, f"wanted {kind}, got {got!r}")


def done():
    print(f"ok {count} checks", flush=True)
