"""Many streams in one session: turns, windows, liveness. Pure, like `shared.wire` below it.

    session   messages in, calls to handlers out; who may open
    handler   what a session tells its owner
    table     which streams are open, how they end, who is told
    outbox    what waits to be sent, and whose turn it is
    in_flight how much may be under way, from what its ACKs tell of the path
    replay    messages that may be sent again when the connection is lost
    stream    one stream: its states (a table), its queue
    windows   flow-control arithmetic by absolute offsets
    idle      credit that is not used and goes back
    budget    how much memory windows and kept messages may take
    liveness  signs of life, pings, round-trip times
    counters  what a session counts; readings: one look at them and at the streams

The shell (`shared.tunnel`) feeds a `Session` and carries out what it says. Owners of
streams implement `shared.streams.StreamHandler`; a `Stream` is their `ByteStream`.
"""
