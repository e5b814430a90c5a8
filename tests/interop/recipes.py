"""Recipes by which each of the servers is installed and started."""

from __future__ import annotations

import base64
from dataclasses import dataclass

HOST = "127.0.0.1"
DOMAIN = "lab.test"
REALM = "LAB.TEST"
USERNAME = "tester"
PASSWORD = "s3cret-Pa55"
PASSWORD_HASH = "$1$interop$hMqPshASgLYYQEoEprCtO."  # as in /etc/shadow
UTF8_LOCAL = "δοκιμή"  # delivered into the mailbox "utf8" where SMTPUTF8 is offered
MAX_SIZE = 50 * 1024 * 1024
VMAIL = 5000  # who owns the mail; the other numbers are in PASSWD
JWT_KEY = b"the key that the OAuth tokens of the interop tests are signed with"

PASSWD = f"""\
root:x:0:0::/:/bin/sh
nobody:x:65534:65534::/:/bin/false
vmail:x:{VMAIL}:{VMAIL}::/srv/mail:/bin/false
postfix:x:5001:5001::/:/bin/false
Debian-exim:x:5003:5003::/:/bin/false
dovecot:x:5004:5004::/:/bin/false
dovenull:x:5005:5005::/:/bin/false
cyrus:x:5006:8::/:/bin/false
"""
GROUP = f"""\
root:x:0:
nogroup:x:65534:
mail:x:8:
vmail:x:{VMAIL}:
postfix:x:5001:
postdrop:x:5002:
Debian-exim:x:5003:
dovecot:x:5004:
dovenull:x:5005:
"""


SILENT = ("kdc", "socks", "connect")


@dataclass(frozen=True)
class Recipe:
    """The recipe by which one kind of server is installed and started.

    The name of a role says how its port is spoken to: `tls` in it means implicit TLS, `haproxy` that a PROXY
    header comes first. Where it begins as one of `SILENT`, the client is the first to speak.
    """

    packages: str
    roles: tuple[str, ...]  # the ports it listens on
    files: dict[str, str]  # template under conf/ -> path under /etc
    prepare: str  # shell, run in the server's root folder with the machine's own tools
    command: str
    suite: str = ""  # of Debian, where it is not the machine's own
    npm: str = ""  # a package of Node.js, installed in /usr/lib/npm
    go: str = ""  # a program under conf/, built with the Go among the packages to be /usr/bin/server


# One root folder for whatever Postfix and Dovecot do. usr-is-merged stands in for usrmerge, which would bring
# the whole of Perl.
MAIL = (
    "postfix sasl2-bin libsasl2-modules libsasl2-modules-db libsasl2-modules-gssapi-mit dovecot-core dovecot-lmtpd "
    "dovecot-submissiond dovecot-gssapi krb5-kdc krb5-admin-server usr-is-merged"
)

# What `postfix check` would make, without its half second of shell scripts.
QUEUE = """
queue=var/spool/postfix
mkdir -p $queue/pid var/lib/postfix
chown 5001 var/lib/postfix
for d in active bounce corrupt defer deferred flush hold incoming private saved trace; do
    install -d -o 5001 -m 700 $queue/$d
done
install -d -o 5001 -g 5002 -m 710 $queue/public
install -d -o 5001 -g 5002 -m 1730 $queue/maildrop
"""
POSTFIX = f"""{QUEUE}
printf %s '{PASSWORD}' | chroot . /usr/sbin/saslpasswd2 -p -c -u {DOMAIN} {USERNAME}
chgrp 5001 etc/sasldb2 && chmod 640 etc/sasldb2
"""

# The user's keytab is where clients find it, outside the namespace.
KERBEROS = f"""
mkdir -p var/lib/krb5kdc
chroot . /usr/sbin/kdb5_util -P master create -s -r {REALM}
chroot . /usr/sbin/kadmin.local <<END
addprinc -randkey {USERNAME}
addprinc -randkey smtp/localhost
ktadd -k /srv/krb5/{USERNAME}.keytab {USERNAME}
ktadd smtp/localhost
END
chmod 644 etc/krb5.keytab srv/krb5/{USERNAME}.keytab
serve /usr/sbin/krb5kdc -n
"""

EXIM = "mkdir var/spool/exim4 && chown 5003:5003 var/spool/exim4"

OAUTH = f"""
mkdir -p etc/dovecot/keys/default/HS256
echo {base64.b64encode(JWT_KEY).decode()} >etc/dovecot/keys/default/HS256/default
"""

RECIPES = {
    "postfix": Recipe(
        MAIL,
        ("plain", "submission", "tls", "xclient", "haproxy"),
        {
            "postfix-main.cf": "postfix/main.cf",
            "postfix-master.cf": "postfix/master.cf",
            "postfix-mailboxes": "postfix/mailboxes",
            "postfix-sasl.conf": "postfix/sasl/smtpd.conf",
        },
        POSTFIX,
        "/usr/lib/postfix/sbin/master -d",
    ),
    "exim": Recipe(
        "exim4-daemon-heavy usr-is-merged",
        ("plain", "submission", "tls", "auth", "haproxy"),
        {"exim.conf": "exim4/exim4.conf"},
        EXIM,
        "/usr/sbin/exim4 -bdf",
    ),
    "dovecot": Recipe(
        MAIL,
        ("lmtp",),
        {"dovecot.conf": "dovecot/dovecot.conf", "dovecot-mailboxes": "dovecot/mailboxes"},
        "mkdir var/lib/dovecot",
        "/usr/sbin/dovecot -F",
    ),
    "sasl": Recipe(
        MAIL,
        ("relay", "cyrus", "dovecot", "submission", "tls", "haproxy", "kdc"),
        {
            "postfix-main.cf": "postfix/main.cf",
            "sasl-master.cf": "postfix/master.cf",
            "postfix-mailboxes": "postfix/mailboxes",
            "sasl-cyrus.conf": "postfix/sasl/smtpd.conf",
            "sasl-dovecot.conf": "dovecot/dovecot.conf",
            "sasl-oauth2.conf": "dovecot/oauth2.conf",
            "sasl-users": "dovecot/users",
            "krb5.conf": "krb5.conf",
            "kdc.conf": "krb5kdc/kdc.conf",
        },
        POSTFIX + KERBEROS + OAUTH + "mkdir var/lib/dovecot; serve /usr/sbin/dovecot -F",
        "/usr/lib/postfix/sbin/master -d",
    ),
    # The mechanisms with channel binding.
    "dovecot24": Recipe(
        "dovecot-core dovecot-submissiond postfix usr-is-merged dash",
        ("relay", "submission", "tls"),
        {
            "postfix-main.cf": "postfix/main.cf",
            "dovecot24-master.cf": "postfix/master.cf",
            "postfix-mailboxes": "postfix/mailboxes",
            "dovecot24.conf": "dovecot/dovecot.conf",
            "sasl-users": "dovecot/users",
        },
        QUEUE + "mkdir var/lib/dovecot; serve /usr/sbin/dovecot -F",
        "/usr/lib/postfix/sbin/master -d",
        "trixie",
    ),
    # DELIVERBY.
    "sendmail": Recipe(
        "sendmail-bin sendmail-cf usr-is-merged",
        ("plain", "tls"),
        {"sendmail.mc": "mail/sendmail.mc", "sendmail-deliver": "mail/deliver"},
        """
        for name in alice bob carol dave; do echo "$name:x:5000:5000::/:/bin/false"; done >>etc/passwd
        mkdir -p -m 700 var/spool/mqueue
        chmod 755 etc/mail/deliver
        install -m 600 etc/server.pem etc/server.key
        chroot . /usr/bin/m4 /etc/mail/sendmail.mc >etc/mail/sendmail.cf 2>/dev/null  # it misses a shell
        """,
        "/usr/libexec/sendmail/sendmail -bD",
    ),
    # REQUIRETLS.
    "nodemailer": Recipe(
        "nodejs usr-is-merged",
        ("plain", "tls", "lmtp"),
        {"smtp-server.js": "smtp-server.js"},
        "",
        "/usr/bin/node /etc/smtp-server.js",
        "trixie",
        "smtp-server@3.21.6",
    ),
    # LIMITS: its conf is that of the other Exim, but with small ones.
    "exim498": Recipe(
        "exim4-daemon-heavy usr-is-merged",
        ("plain", "submission", "tls", "auth", "haproxy"),
        {"exim.conf": "exim4/exim4.conf"},
        EXIM,
        "/usr/sbin/exim4 -bdf",
        "trixie",
    ),
    # Postfix and Exim with the limits on errors that they have by default.
    "postfix_strict": Recipe(
        MAIL,
        ("plain", "submission", "tls", "xclient", "haproxy"),
        {
            "postfix-main.cf": "postfix/main.cf",
            "postfix-master.cf": "postfix/master.cf",
            "postfix-mailboxes": "postfix/mailboxes",
            "postfix-sasl.conf": "postfix/sasl/smtpd.conf",
        },
        POSTFIX + "sed -i '/^smtpd_.*_limit = /d; /^smtpd_error_sleep_time/d' etc/postfix/main.cf",
        "/usr/lib/postfix/sbin/master -d",
    ),
    "exim_strict": Recipe(
        "exim4-daemon-heavy usr-is-merged",
        ("plain", "submission", "tls", "auth", "haproxy"),
        {"exim.conf": "exim4/exim4.conf"},
        EXIM + "; sed -i '/^smtp_max_/d; /^smtp_accept_max_/d' etc/exim4/exim4.conf",
        "/usr/sbin/exim4 -bdf",
    ),
    # What does not read a chunk that it refuses.
    "go": Recipe(
        "golang-github-emersion-go-smtp-dev golang-github-emersion-go-sasl-dev golang-go usr-is-merged dash",
        ("plain",),
        {"go-smtp-arguments": "go-smtp-arguments"},
        "",
        "/bin/sh -c '. /etc/go-smtp-arguments; exec /usr/bin/server 127.0.0.1:$PORT $DOMAIN'",
        "trixie",
        go="go-smtp.go",
    ),
    # Another LMTP, with AUTH on one of its ports, and mailboxes that `MailServer.messages` does not find.
    "cyrus": Recipe(
        "cyrus-common sasl2-bin libsasl2-modules libsasl2-modules-db usr-is-merged",
        ("lmtp", "lmtp_auth"),
        {"cyrus-imapd.conf": "imapd.conf", "cyrus.conf": "cyrus.conf"},
        f"""
        for d in lib/cyrus run/cyrus/proc run/cyrus/lock; do install -d -o 5006 -g 8 var/$d; done
        install -d -o 5006 -g 8 var/run/cyrus srv/sock srv/mail
        realm=$(sed -n 's/^servername: //p' etc/imapd.conf)
        printf %s '{PASSWORD}' | chroot . /usr/sbin/saslpasswd2 -p -c -u $realm {USERNAME}
        chmod 644 etc/sasldb2
        """,
        "/usr/lib/cyrus/bin/master -D",
    ),
    # Not servers of mail, but on the way to them: SOCKS and CONNECT, each without and with the user's password.
    "proxies": Recipe(
        "dante-server tinyproxy usr-is-merged",
        ("socks", "socks_auth", "connect", "connect_auth"),
        {name: name for name in ("dante.conf", "dante-auth.conf", "tinyproxy.conf", "tinyproxy-auth.conf")},
        f"""
        echo '{USERNAME}:x:{VMAIL}:{VMAIL}::/:/bin/false' >>etc/passwd
        echo '{USERNAME}:{PASSWORD_HASH}:20000:0:99999:7:::' >etc/shadow
        serve /usr/sbin/danted -f /etc/dante.conf
        serve /usr/sbin/danted -f /etc/dante-auth.conf
        serve /usr/bin/tinyproxy -d -c /etc/tinyproxy.conf
        """,
        "/usr/bin/tinyproxy -d -c /etc/tinyproxy-auth.conf",
    ),
}
