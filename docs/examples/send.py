"""Sends a campaign and waits for its account, with nothing but pyzmq and msgpack: send.py STATE RECIPIENTS.csv."""

import sys
import time

import msgpack
import zmq

state, recipients = sys.argv[1:]
socket = zmq.Context().socket(zmq.REQ)
socket.connect(f"ipc://{state}/run/control")
campaign = """
name = "from-python"
subject = "Hello {{ first_name }}"
from = "News <news@example.com>"
text = "message.txt"
unsubscribe = { mailto = "unsubscribe@example.com" }
"""


def ask(op, **args):
    """One request, one reply: the result, or the end with the error's message."""
    socket.send(msgpack.packb({"v": 1, "id": 1, "op": op, "args": args}))
    reply = msgpack.unpackb(socket.recv())
    return reply["result"] if reply["ok"] else sys.exit(reply["error"]["message"])


files = {"message.txt": "Dear {{ first_name }}, this is for {{ email }}.\n"}
number = ask("campaign.send", text=campaign, attached=files, recipients=recipients, checked=True)["campaign"]
while (account := ask("campaign.show", campaign=number))["state"] not in ("finished", "cancelled"):
    time.sleep(0.1)
sys.stdout.write(f"{account['sent']} of {account['audience']} sent\n")
