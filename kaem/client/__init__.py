"""Samplers on servers: retried, resumed, hedged and shared out without changing a bit of the result.

kaem.client.remote            for threads          kaem.client.asynchronous      for asyncio
threads.py                   their calls           tasks.py
exchange.py                      what both do with a job's calls
job.py  blocks.py  standing.py  hedging.py         what to do next; no I/O, no clock, no randomness of their own
failure.py  patience.py  plan.py  greeting.py
addresses.py  credentials.py  channel.py           whom, and with what proof
processes.py                                       what is said where a connection does not belong
"""

from __future__ import annotations

from kaem.client.asynchronous import AsyncRemoteSampler, Connecting, connect_async
from kaem.client.connection import Credentials
from kaem.client.remote import RemoteSampler, connect
from kaem.client.retry import Hedging, Patience

__all__ = [
    "AsyncRemoteSampler",
    "Connecting",
    "Credentials",
    "Hedging",
    "Patience",
    "RemoteSampler",
    "connect",
    "connect_async",
]
