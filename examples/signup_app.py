"""A web app that sends a mail on sign-up, and answers when the mail server has taken it.

pip install 'asmtp[examples]'
SMTP_HOST=localhost SMTP_PORT=25 uvicorn signup_app:app
curl -d '{"email": "new@example.com"}' localhost:8000/signup
"""

import os
from email.message import EmailMessage

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import asmtp


def welcome(address: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Example <welcome@example.com>"
    message["To"] = address
    message["Subject"] = "Welcome"
    message.set_content("Good to have you.\n")
    return message


async def signup(request: Request) -> JSONResponse:
    address = (await request.json())["email"]
    host, port = os.environ.get("SMTP_HOST", "localhost"), int(os.environ.get("SMTP_PORT", "25"))
    try:
        async with asmtp.AsyncSMTP(host, port, timeout=10) as smtp:
            await smtp.send_message(welcome(address))
    except asmtp.SMTPRecipientsRefused:
        return JSONResponse({"error": "this address does not take mail"}, status_code=422)
    except (asmtp.SMTPException, OSError) as error:
        # error.state tells whether the mail may be on its way all the same: "not_sent" or "in_doubt".
        return JSONResponse({"error": "no mail could be sent", "detail": str(error)}, status_code=503)
    except ValueError as error:  # nothing was sent: the address cannot be one
        return JSONResponse({"error": str(error)}, status_code=422)
    return JSONResponse({"sent": address}, status_code=201)


app = Starlette(routes=[Route("/signup", signup, methods=["POST"])])
