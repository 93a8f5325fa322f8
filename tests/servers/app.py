"""The same answer for gunicorn (WSGI) and for uvicorn (ASGI)."""

import os


def body():
    return b'{"worker":0,"pid":%d}' % os.getpid()


def wsgi(_, start_response):
    answer = body()
    start_response("200 OK", [("x-worker", "0"), ("content-length", str(len(answer)))])
    return [answer]


async def asgi(scope, _, send):
    if scope["type"] != "http":
        return
    answer = body()
    headers = [(b"x-worker", b"0"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
