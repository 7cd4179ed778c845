"""The engines behind one OpenAI endpoint: vLLM, transformers (embedded), and someone else's over HTTP."""
