"""A script that was written for smtplib.  One line of it was changed: the first import.

SMTP_HOST=localhost SMTP_PORT=25 python legacy_report.py
"""

import os
import sys
from email.mime.text import MIMEText

import asmtp as smtplib  # was: import smtplib

recipients = ["ops@example.com", "boss@example.com", "nobody@example.com"]

report = MIMEText("All is well.\n")
report["Subject"] = "Nightly report"
report["From"] = "cron@example.com"
report["To"] = ", ".join(recipients)

try:
    server = smtplib.SMTP(os.environ.get("SMTP_HOST", "localhost"), int(os.environ.get("SMTP_PORT", "25")))
    server.ehlo_or_helo_if_needed()
    refused = server.sendmail("cron@example.com", recipients, report.as_string())
    server.quit()
except smtplib.SMTPException as error:
    sys.exit(f"no report was sent: {error}")

for address, (code, text) in refused.items():
    print(f"{address} was refused: {code} {text.decode()}")
print(f"sent to {len(recipients) - len(refused)}")
