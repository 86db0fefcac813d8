"""The protocol of the tunnel as bytes: frames, hello, and SPEC.md, which is normative.

    frames  cutting a message into frames; encoding and parsing each payload
    hello   the first frame of each side; protocol versions

Pure: nothing here knows a socket, a clock or a stream's state.
"""
