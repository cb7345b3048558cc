"""Three AI actions in Flask, attributed with no argument. Run: flask --app examples/flask/app run"""

from typing import Any

from flask import Flask, abort, request
from openai import OpenAI

from fluxgate_mw import FluxGate, User, context, feature, identify
from fluxgate_mw.integrations.flask import FluxGateFlask

USERS = {"ann-token": User("user-123", email="ann@example.com", name="Ann")}  # your sign-in goes here

fg = FluxGate()
app = Flask(__name__)
FluxGateFlask(app)
client = OpenAI()


@app.before_request
def sign_in() -> None:
    token = request.authorization.token if request.authorization else None
    if token not in USERS:
        abort(401, "sign in first")
    identify(USERS[token])


@app.post("/summarize")
@feature("summarizer")
def summarize() -> Any:
    text = request.json["text"]
    answer = client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "system", "content": "You are a concise summarizer."}, {"role": "user", "content": text}],
        max_tokens=256,
    )
    return {"text": answer.choices[0].message.content}


@app.post("/chat")
@feature("chat-assistant")
def chat_reply() -> Any:
    with context(conversation_id=request.json["conversation_id"]):
        answer = client.chat.completions.create(model="gpt-4o", messages=request.json["messages"])
    return {"text": answer.choices[0].message.content}


@app.post("/analyze-image")
@feature("image-analysis")
def analyze_image() -> Any:
    picture = {"url": f"data:image/jpeg;base64,{request.json['image_base64']}"}
    question: list[Any] = [
        {"type": "text", "text": "Describe this image."},
        {"type": "image_url", "image_url": picture},
    ]
    answer = client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=512
    )
    return {"text": answer.choices[0].message.content}
