// Sends a campaign with nodemailer's pool, as its documentation shows it; prints {"sent", "seconds"}.
// node nodemailer.mjs CAMPAIGN.json: {host, port, connections, messages, html, text}, {{ name }} filled in by replace.
import { readFileSync } from "node:fs";
import nodemailer from "nodemailer";

const campaign = JSON.parse(readFileSync(process.argv[2], "utf8"));
const transport = nodemailer.createTransport({
  host: campaign.host,
  port: campaign.port,
  secure: false,
  ignoreTLS: true,
  pool: true,
  maxConnections: campaign.connections,
  maxMessages: Infinity,
});

const filled = (template, fields) => template.replace(/{{ (\w+) }}/g, (_, name) => fields[name]);
let next = 0;

async function sendSome() {
  while (next < campaign.messages) {
    const number = next++;
    const fields = { first_name: `Name ${number}`, city: `City ${number % 300}`, email: `user${number}@example.com` };
    await transport.sendMail({
      from: "News <news@example.com>",
      to: fields.email,
      subject: `Name ${number}, autumn has come to City ${number % 300}`,
      html: filled(campaign.html, fields),
      text: filled(campaign.text, fields),
    });
  }
}

const began = performance.now();
await Promise.all(Array.from({ length: 2 * campaign.connections }, sendSome)); // the pool always has one to go on with
const seconds = (performance.now() - began) / 1000;
transport.close();
console.log(JSON.stringify({ sent: campaign.messages, seconds }));
