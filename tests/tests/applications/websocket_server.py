"""A WebSocket server on all addresses, port 8765: says back what it hears; `bye` makes it close with 4002."""

import asyncio

import websockets


async def talk(connection):
    async for message in connection:
        if message == "bye":
            await connection.close(4002, "as you wish")
            return
        await connection.send(message)


async def main():
    async with websockets.serve(talk, "0.0.0.0", 8765, max_size=None):
        print("ready")
        await asyncio.Future()


asyncio.run(main())
