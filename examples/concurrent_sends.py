"""A hundred personal letters over one connection: tasks share it, and their messages are pipelined.

SMTP_HOST=localhost SMTP_PORT=25 python concurrent_sends.py
"""

import asyncio
import os
from email.message import EmailMessage

import asmtp


def letter(number: int) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "letters@example.com"
    message["To"] = f"reader{number}@example.com"
    message["Subject"] = f"Letter {number}"
    message.set_content(f"Dear reader {number},\n\nall the best.\n")
    return message


async def main() -> None:
    host, port = os.environ.get("SMTP_HOST", "localhost"), int(os.environ.get("SMTP_PORT", "25"))
    async with asmtp.AsyncSMTP(host, port) as smtp:
        tasks = [smtp.send_message(letter(number)) for number in range(100)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    print(f"{len(results) - len(failures)} sent, {len(failures)} not sent")


asyncio.run(main())
