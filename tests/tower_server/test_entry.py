"""Raw TCP entries over real tunnels, on both event loops.

Covered: bytes both ways and both ends, an absent agent, a tunnel that takes no streams, a
target that cannot be written, an address that is taken, the end of listening.
"""

import asyncio

import pytest

from shared.settings import HostPort
from tests.fakes.host_side import HostSide, until
from tests.fakes.tunnel_pair import LOOPBACK, both_loops
from tower_server.entry import RawEntry
from tower_server.settings import TcpEntry, parse_tcp_entry


def entry(host: HostSide, text: str = "127.0.0.1:0=alpha/web") -> RawEntry:
    return RawEntry(parse_tcp_entry(text), host.registry)


async def is_reset(address: tuple[str, int]) -> bool:
    """Whether a connection there is ended by RST, which nobody takes for an answer."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        async with asyncio.timeout(5):
            await reader.read()
    except ConnectionResetError:
        return True
    finally:
        writer.close()
    return False


@both_loops
async def test_a_connection_becomes_a_stream_to_the_target() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        raw = entry(host)
        reader, writer = await asyncio.open_connection(*await raw.listen())
        writer.write(b"a question")
        await until(lambda: agent.sinks and agent.sinks[0].received == b"a question")
        stream = agent.sinks[0].stream
        assert stream.target == "tcp/web"
        writer.write_eof()
        await until(lambda: agent.sinks[0].has_eof)
        stream.write(b"an answer")
        stream.write_eof()
        assert await reader.read() == b"an answer"
        writer.close()
        await raw.close()


@both_loops
async def test_without_an_agent_or_a_stream_the_connection_is_reset() -> None:
    async with HostSide() as host:
        host.registry.know((await host.join()).cluster, None)
        raw = entry(host)
        address = await raw.listen()
        assert await is_reset(address)
        agent = await host.connected_agent()
        unwritable = RawEntry(
            TcpEntry(
                listen=HostPort(host=LOOPBACK, port=0),
                cluster=agent.credentials.cluster,
                target="x" * 1000,
            ),
            host.registry,
        )
        assert await is_reset(await unwritable.listen())
        assert not agent.sinks
        await raw.close()
        await unwritable.close()


@both_loops
async def test_the_agents_refusal_resets_the_connection() -> None:
    async with HostSide() as host:
        agent = await host.connected_agent()
        agent.owner.on_stream = None  # refuses all
        raw = entry(host)
        assert await is_reset(await raw.listen())
        await raw.close()


@both_loops
async def test_a_taken_address_is_an_oserror_and_a_closed_entry_frees_its_own() -> None:
    async with HostSide() as host:
        with pytest.raises(OSError):
            await entry(host, f"127.0.0.1:{host.port}=alpha/web").listen()
        raw = entry(host)
        address = await raw.listen()
        await raw.close()
        await raw.close()
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
