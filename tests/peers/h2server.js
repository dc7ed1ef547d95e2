// An HTTP/2 server: node's own, which is nghttp2's. Arguments: key, certificate.
//
// Prints its port, and each request that it takes as a line of JSON once it has come whole. How it
// answers is up to the number at the end of the path. Each line of its input is JSON too:
// {"settings": {...}} for the connection, or {"close": true} to end it gracefully.
"use strict";
const fs = require("fs"), http2 = require("http2"), readline = require("readline");

const [key, cert] = process.argv.slice(2).map((name) => fs.readFileSync(name));
const { NGHTTP2_REFUSED_STREAM } = http2.constants;
const tell = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const refused = new Set();
let session, acknowledged = 0;

function answer(stream, id, number) {
    const headers = (status, more) => ({ ":status": status, "apns-id": id, ...more });
    const say = (status, text) => {
        stream.respond(headers(status, { "content-type": "application/json" }));
        stream.end(text);
    };
    switch (number % 8) {
    case 1: // trailers, after a body
        stream.respond(headers(200), { waitForTrailers: true });
        stream.on("wantTrailers", () => stream.sendTrailers({ checked: "yes" }));
        return stream.end("{}");
    case 2:
        return say(410, '{"reason":"Unregistered","timestamp":1}');
    case 3:
        return say(400, "x".repeat(20000));
    case 4:
        stream.additionalHeaders({ ":status": 103 });
        return say(429, '{"reason":"TooManyRequests"}');
    default:
        return stream.respond(headers(200), { endStream: true });
    }
}

const server = http2.createSecureServer({ key, cert, settings: { maxConcurrentStreams: 100 } });
server.on("session", (one) => {
    session = one;
    session.on("localSettings", () => tell({ acknowledged: ++acknowledged }));
    session.on("error", (error) => tell({ error: String(error) }));
});
server.on("stream", (stream, headers) => {
    let body = "";
    stream.setEncoding("utf8");
    stream.on("data", (text) => { body += text; });
    stream.on("error", (error) => {
        if (stream.rstCode !== NGHTTP2_REFUSED_STREAM) tell({ error: String(error) });
    });
    stream.on("end", () => {
        const id = headers["apns-id"], number = parseInt(headers[":path"].slice(-8), 16);
        if (number % 8 === 5 && !refused.has(id)) { // for the first time
            refused.add(id);
            stream.close(NGHTTP2_REFUSED_STREAM);
        } else {
            tell({ headers, never: headers[http2.sensitiveHeaders], body });
            answer(stream, id, number);
        }
    });
});
readline.createInterface({ input: process.stdin }).on("line", (line) => {
    const wanted = JSON.parse(line);
    if (wanted.settings) session.settings(wanted.settings);
    if (wanted.close) session.close();
});
server.listen(0, "127.0.0.1", () => tell({ port: server.address().port }));
