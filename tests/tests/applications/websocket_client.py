"""Talks to websocket_server.py at the address given, and ends with `done` if everything came back."""

import asyncio
import os
import sys

import websockets

URL = f"ws://{sys.argv[1]}/talk?to=me"


def equal(what, got, wanted):
    if got != wanted:
        raise SystemExit(f"{what}: got {str(got)[:200]}, wanted {str(wanted)[:200]}")


async def echoes(compression):
    async with websockets.connect(URL, compression=compression, max_size=None) as connection:
        for message in ("", "hello", "\u00e4" * 70000, b"", os.urandom(1 << 20)):
            await connection.send(message)
            equal("echo", await connection.recv(), message)
        # One message in fragments.
        await connection.send([b"one, ", b"two, ", b"three"])
        equal("fragments", await connection.recv(), b"one, two, three")
        # A ping is answered by the server's library.
        await asyncio.wait_for(await connection.ping(b"there?"), 20)
        await connection.close(4001, "enough")
    equal("the client's close", (connection.close_code, connection.close_reason), (4001, "enough"))


async def server_closes():
    async with websockets.connect(URL) as connection:
        await connection.send("bye")
        try:
            await connection.recv()
        except websockets.ConnectionClosedError as closed:
            equal("the server's close", (closed.rcvd.code, closed.rcvd.reason), (4002, "as you wish"))
            return
    raise SystemExit("the server did not close")


async def main():
    await asyncio.gather(echoes(None), echoes("deflate"), server_closes())
    print("done")


asyncio.run(asyncio.wait_for(main(), 30))
