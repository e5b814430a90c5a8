"use strict";
const fs = require("fs");
const { SMTPServer } = require("/usr/lib/npm/node_modules/smtp-server");

const key = fs.readFileSync("/etc/server.pem");
let count = 0;

function refusal(code, text) {
    return Object.assign(new Error(text), { responseCode: code });
}

function onRcptTo(address, session, callback) {
    const local = address.address.split("@")[0];
    if (local === "tempfail") return callback(refusal(450, "4.2.1 Mailbox busy, try again later"));
    if (!["alice", "bob", "carol", "dave"].includes(local)) return callback(refusal(550, "5.1.1 No such user"));
    callback();
}

// Into Maildirs, with what the envelope asked for in front.
function onData(stream, session, callback) {
    const parts = [];
    stream.on("data", (part) => parts.push(part));
    stream.on("end", () => {
        const { mailFrom, requireTLS, smtpUtf8, dsn, rcptTo } = session.envelope;
        for (const { address, dsn: own } of rcptTo) {
            const folder = `/srv/mail/${address.split("@")[0]}`;
            const before = `Return-Path: <${mailFrom.address}>\n`;
            const asked = JSON.stringify({ requireTLS, smtpUtf8, ...dsn, ...own });
            const name = `${process.pid}.${count++}`;
            fs.mkdirSync(`${folder}/new`, { recursive: true });
            const content = Buffer.concat(parts).toString("latin1").replace(/\r\n/g, "\n");
            fs.writeFileSync(`${folder}/${name}`, `${before}X-Asked: ${asked}\n${content}`, "latin1");
            fs.renameSync(`${folder}/${name}`, `${folder}/new/${name}`);
        }
        callback();
    });
}

function onAuth(auth, session, callback) {
    const right = auth.username === "@USER@" && (auth.method === "CRAM-MD5" ? auth.validatePassword("@PASSWORD@") : auth.password === "@PASSWORD@");
    callback(right ? null : refusal(535, "5.7.8 Wrong user or password"), { user: auth.username });
}

function serve(port, options) {
    new SMTPServer({
        banner: "@TOKEN@", key, cert: key, size: @MAX_SIZE@, onRcptTo, onData, onAuth, disableReverseLookup: true,
        authMethods: ["CRAM-MD5", "PLAIN", "LOGIN"], authOptional: true, useXClient: true,
        hideREQUIRETLS: false, hideDSN: false, hideENHANCEDSTATUSCODES: false, ...options,
    }).listen(port, "127.0.0.1");
}

serve(@PORT_PLAIN@, {});
serve(@PORT_TLS@, { secure: true });
serve(@PORT_LMTP@, { lmtp: true });
