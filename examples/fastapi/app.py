"""Three AI actions in FastAPI, attributed with no argument. Run: uvicorn --app-dir examples/fastapi app:app"""

from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from openai import AsyncOpenAI

from fluxgate_mw import FluxGate, FluxGateMiddleware, User, context, feature, identify

USERS = {"ann-token": User("user-123", email="ann@example.com", name="Ann")}  # your sign-in goes here
Text = Annotated[str, Body(embed=True)]

fg = FluxGate()
app = FastAPI(lifespan=fg.lifespan)
app.add_middleware(FluxGateMiddleware)
client = AsyncOpenAI()


async def signed_in(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> None:
    if bearer.credentials not in USERS:
        raise HTTPException(401, "sign in first")
    identify(USERS[bearer.credentials])


@app.post("/summarize", dependencies=[Depends(signed_in)])
@feature("summarizer")
async def summarize(text: Text) -> str | None:
    answer = await client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "system", "content": "You are a concise summarizer."}, {"role": "user", "content": text}],
        max_tokens=256,
    )
    return answer.choices[0].message.content


@app.post("/chat", dependencies=[Depends(signed_in)])
@feature("chat-assistant")
async def chat_reply(messages: Annotated[list[Any], Body()], conversation_id: Text) -> str | None:
    with context(conversation_id=conversation_id):
        answer = await client.chat.completions.create(model="gpt-4o", messages=messages)
    return answer.choices[0].message.content


@app.post("/analyze-image", dependencies=[Depends(signed_in)])
@feature("image-analysis")
async def analyze_image(image_base64: Text) -> str | None:
    picture = {"url": f"data:image/jpeg;base64,{image_base64}"}
    question: list[Any] = [
        {"type": "text", "text": "Describe this image."},
        {"type": "image_url", "image_url": picture},
    ]
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=512
    )
    return answer.choices[0].message.content
