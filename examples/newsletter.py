"""A thousand personal letters through a pool of connections, and an account of each.

ASMTP_URL=smtp://localhost python newsletter.py
"""

import asyncio
from collections.abc import Iterator
from email.message import EmailMessage

import asmtp


def letters() -> Iterator[EmailMessage]:
    """Made one by one, as they can be sent: no list of all of them."""
    for number in range(1000):
        message = EmailMessage()
        message["From"] = "letters@example.com"
        message["To"] = "nobody@example.com" if number == 10 else f"reader{number}@example.com"
        message["Subject"] = f"Letter {number}"
        message.set_content(f"Dear reader {number},\n\nall the best.\n")
        yield message


async def main() -> None:
    sent = 0
    async with asmtp.AsyncMailer(connections=4, rate="5000/s") as mailer:
        async for delivery in mailer.send_all(letters()):
            if delivery.ok:
                sent += 1
            else:
                print(f"{delivery.item['To']}: {delivery.state}: {delivery.error}")
    print(f"{sent} sent")


asyncio.run(main())
