"""Three AI actions anywhere, each told who it serves. Run: python examples/explicit/actions.py"""

from typing import Any

from openai import OpenAI

from fluxgate_mw import FluxGate, User, create_openai_cost_tracker, tracking

fg = FluxGate()
openai = create_openai_cost_tracker(OpenAI(), fg)


def summarize_action(text: str, user: User | None) -> str | None:
    if user is None:
        raise PermissionError("sign in first")
    tracked = openai.with_context(user=user, feature="summarizer")
    answer = tracked.chat.completions.create(
        model="gpt-4o-mini",
        messages=[{"role": "system", "content": "You are a concise summarizer."}, {"role": "user", "content": text}],
        max_tokens=256,
    )
    print(tracking(answer))
    return answer.choices[0].message.content


def chat_reply_action(messages: Any, conversation_id: str, user_id: str) -> str | None:
    tracked = openai.with_context(user=user_id, feature="chat-assistant", conversation_id=conversation_id)
    answer = tracked.chat.completions.create(model="gpt-4o", messages=messages)
    print(tracking(answer))
    return answer.choices[0].message.content


def analyze_image_action(image_base64: str, user_id: str) -> str | None:
    tracked = openai.with_context(user=user_id, feature="image-analysis")
    picture = {"url": f"data:image/jpeg;base64,{image_base64}"}
    question: list[Any] = [
        {"type": "text", "text": "Describe this image."},
        {"type": "image_url", "image_url": picture},
    ]
    answer = tracked.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": question}], max_tokens=512
    )
    print(tracking(answer))
    return answer.choices[0].message.content


if __name__ == "__main__":
    with fg:
        ann = User("user-123", email="ann@example.com", name="Ann")
        summarize_action("A very long text about a very small thing.", ann)
        chat_reply_action([{"role": "user", "content": "Hello!"}], "conversation-1", ann.id)
        analyze_image_action("iVBORw0KGgo=", ann.id)
