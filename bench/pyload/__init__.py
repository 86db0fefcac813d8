"""The load generator in Python, for machines without Go.

The same commands, flags, bytes and JSON as load/ (see load/preamble.go for the raw
protocol), on asyncio. It is a few times slower than the Go one, so on few cores it
takes a larger share of what it measures: good for "does it work" and for comparing
columns with each other, not for comparing with figures from elsewhere. No relay.
"""
