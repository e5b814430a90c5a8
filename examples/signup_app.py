"""A web app that sends a mail on sign-up, and answers when the mail server has taken it.

pip install 'asmtp[examples]'
ASMTP_URL=smtp://localhost uvicorn signup_app:app
curl -d '{"email": "new@example.com"}' localhost:8000/signup
"""

import contextlib
from collections.abc import AsyncIterator
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
    try:
        receipt = await request.app.state.mailer.send(welcome(address))
    except asmtp.SMTPException as error:
        # With 4yz (greylisting, a full mailbox) the address is good, and a later try may succeed.
        if isinstance(error, asmtp.SMTPRecipientsRefused) and not error.transient:
            return JSONResponse({"error": "this address does not take mail"}, status_code=422)
        # error.state tells whether the mail may be on its way all the same: "not_sent", "refused" or "in_doubt".
        return JSONResponse({"error": "no mail could be sent", "state": error.state}, status_code=503)
    except ValueError as error:  # nothing was sent: the address cannot be one
        return JSONResponse({"error": str(error)}, status_code=422)
    return JSONResponse({"sent": address, "taken by": receipt.relay}, status_code=201)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # One for the whole app; it connects when there is something to send, and waits for what is in flight when the app
    # stops.  Made here, it belongs to the loop that the app runs in.  The URL is that of ASMTP_URL.
    async with asmtp.AsyncMailer(timeouts=10, retry=asmtp.Retry(attempts=2, within=5)) as app.state.mailer:
        yield


app = Starlette(routes=[Route("/signup", signup, methods=["POST"])], lifespan=lifespan)
