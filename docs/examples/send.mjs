// Sends a campaign and waits for its account: node send.mjs STATE RECIPIENTS.csv
// Needs: npm install zeromq@6 @msgpack/msgpack
import { setTimeout } from "node:timers/promises"
import { decode, encode } from "@msgpack/msgpack"
import { Request } from "zeromq"

const [state, recipients] = process.argv.slice(2)
const socket = new Request()
socket.connect(`ipc://${state}/run/control`)
const text = `
name = "from-node"
subject = "Hello {{ first_name }}"
from = "News <news@example.com>"
text = "message.txt"
unsubscribe = { mailto = "unsubscribe@example.com" }
`

async function ask(op, args) {
  await socket.send(encode({ v: 1, id: 1, op, args }))
  const [frame] = await socket.receive()
  const reply = decode(frame)
  if (!reply.ok) throw new Error(reply.error.message)
  return reply.result
}

const attached = { "message.txt": "Dear {{ first_name }}, this is for {{ email }}.\n" }
const { campaign } = await ask("campaign.send", { text, attached, recipients, checked: true })
let account
while (!["finished", "cancelled"].includes((account = await ask("campaign.show", { campaign })).state)) {
  await setTimeout(100)
}
console.log(`${account.sent} of ${account.audience} sent`)
