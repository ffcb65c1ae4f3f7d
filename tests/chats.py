"""What each family was trained to see, written out: the strings that ours must equal byte for byte."""

QUESTION = "What is shown in this image?"
VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. "
)
LLAMA3 = (
    "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able to "
    "understand the visual content that the user provides, and assist the user with a variety of tasks using natural "
    "language.<|eot_id|>"
)
QWEN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
YI = "<|im_start|>system\nAnswer the questions.<|im_end|>"

ONE_QUESTION = {
    "mistral": "[INST] <image>\nWhat is shown in this image? [/INST]",
    "vicuna": VICUNA + "USER: <image>\nWhat is shown in this image? ASSISTANT:",
    "34b": YI + "<|im_start|>user\n<image>\nWhat is shown in this image?<|im_end|><|im_start|>assistant\n",
    "llama3-8b": LLAMA3 + "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat is shown in this image?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "72b": QWEN + "<|im_start|>user\n<image>\nWhat is shown in this image?<|im_end|>\n<|im_start|>assistant\n",
    "110b": QWEN + "<|im_start|>user\n<image>\nWhat is shown in this image?<|im_end|>\n<|im_start|>assistant\n",
}
THREE_TURNS = {
    "mistral": "[INST] <image>\nWhat? [/INST] A cat.</s> [INST] Sure? [/INST]",
    "vicuna": VICUNA + "USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:",
    "34b": YI + "<|im_start|>user\n<image>\nWhat?<|im_end|><|im_start|>assistant\nA cat.<|im_end|>"
    "<|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n",
    "llama3-8b": LLAMA3 + "<|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "72b": QWEN + "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
    "110b": QWEN + "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n",
}
