"""The blocking facades: SMTP, SMTP_SSL, LMTP, Mailer."""
