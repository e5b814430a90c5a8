"""Blocking code with many threads, such as a Django app's: one Mailer for all of them.

ASMTP_URL=smtp://localhost python thread_pool.py
"""

from concurrent.futures import ThreadPoolExecutor

import asmtp

mailer = asmtp.Mailer(connections=2)


def notify(number: int) -> str:
    receipt = mailer.send(
        f"Subject: Order {number}\r\n\r\nYour order is on its way.\r\n".encode(),
        "orders@example.com",
        f"customer{number}@example.com",
    )
    return receipt.reply.text


with mailer, ThreadPoolExecutor(20) as threads:
    replies = list(threads.map(notify, range(200)))
print(f"{len(replies)} sent; the server said: {replies[0]}")
