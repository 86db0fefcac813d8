"""No tunnel: the client talks to the upstream, over the link where there is one."""

from bench.columns.column import Column
from bench.site import Site
from bench.workloads import Face, Link

__all__ = ["start"]


def start(site: Site, link: Link) -> Column:
    """Nothing to start but the link."""
    addresses = {Face.RAW: site.raw_address, Face.SEALED: site.https_address}
    return Column(
        endpoints={
            face: site.upstream(
                face, site.behind(link, f"direct-{face.value}", address)
            )
            for face, address in addresses.items()
        }
    )
