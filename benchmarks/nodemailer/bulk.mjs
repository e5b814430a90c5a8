// Many messages through nodemailer's pool: node bulk.mjs '{"host": ..., "port": ..., ...}'
//
// Prints {"rate": messages/s, "cpu": µs a message, "memory": MiB added at the peak}; with "size" instead of a
// port, the octets of a message that nodemailer builds itself. `kind` is "bytes" (ready octets) or "built" (from
// fields, at every send). Twice as many sendMail() at once as connections, so that none of them has to wait
// for its next message; the messages are not queued ahead, which would hold them all in memory.

import fs from 'node:fs';
import nodemailer from 'nodemailer';

const options = JSON.parse(process.argv[2]);
const MiB = 1 << 20;

function fields(number) {
    return {
        from: options.sender,
        to: options.recipient,
        subject: 'benchmark',
        date: 'Mon, 02 Nov 2026 10:00:00 +0000',
        messageId: `<${String(number).padStart(10, '0')}@example.com>`,
        text: options.text,
    };
}

const raw = Buffer.from(options.content, 'latin1');

function message(number) {
    if (options.kind === 'built') return fields(number);
    return { envelope: { from: options.sender, to: [options.recipient] }, raw };
}

async function sendAll(transport, count) {
    let next = 0;
    const work = async () => {
        while (next < count) {
            const info = await transport.sendMail(message(next++));
            if (info.rejected.length) throw new Error('not delivered: ' + info.response);
        }
    };
    await Promise.all(Array.from({ length: 2 * options.connections }, work));
}

// As benchmarks.large has it: VmHWM, put back before the sends.
function resident(key) {
    try {
        const status = fs.readFileSync('/proc/self/status', 'latin1');
        return Number(status.split(key + ':')[1].trim().split(/\s+/)[0]) / 1024;
    } catch {
        return (process.resourceUsage().maxRSS * 1024) / MiB;
    }
}

function memoryBefore() {
    try {
        fs.writeFileSync('/proc/self/clear_refs', '5');
    } catch {
        return resident('VmHWM');
    }
    return resident('VmRSS');
}

async function size() {
    const transport = nodemailer.createTransport({ streamTransport: true, buffer: true, newline: 'windows' });
    console.log((await transport.sendMail(fields(0))).message.length);
}

async function bulk() {
    const transport = nodemailer.createTransport({
        host: options.host,
        port: options.port,
        name: options.name,
        ignoreTLS: true,
        pool: true,
        maxConnections: options.connections,
        maxMessages: Infinity,
    });
    await sendAll(transport, options.warmUp);
    const before = memoryBefore();
    const cpuBefore = process.cpuUsage();
    const begin = process.hrtime.bigint();
    await sendAll(transport, options.count);
    const seconds = Number(process.hrtime.bigint() - begin) / 1e9;
    const cpu = process.cpuUsage(cpuBefore);
    const figures = {
        rate: options.count / seconds,
        cpu: (cpu.user + cpu.system) / options.count,
        memory: resident('VmHWM') - before,
    };
    console.log(JSON.stringify(figures));
    transport.close();
}

await (options.size ? size() : bulk());
