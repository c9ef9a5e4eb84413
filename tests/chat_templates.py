"""Chat templates that render a message of a user as published ones do; that of Qwen2-Audio comes with transformers."""

# LLaVA-1.6 with Vicuna: pictures first. Some chats begin with bos, as those of Idefics3 do: "{{ bos_token }}" + VICUNA.
VICUNA = (
    "{% for message in messages %}{{ message.role.upper() }}: "
    "{% for part in message.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# SmolVLM: a space before a message that begins with text.
SMOL = (
    "<|im_start|>{% for message in messages %}{{ message.role.capitalize() }}:"
    "{{ '' if message.content[0].type == 'image' else ' ' }}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# For text alone, such as that of SmolLM2.
OF_TEXT = "{% for message in messages %}<{{ message['role'] + '> ' + message['content'] }} {% endfor %}<assistant>"
