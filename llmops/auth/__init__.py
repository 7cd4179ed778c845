"""Keys and passwords: who may call the gateway and sign in to the rating page. Only hashes are kept.

The gateway's own cache of keys is `llmops.serving.keyring`; what a role may do there is `llmops.serving.access`.
"""

from llmops.auth.key import Created, Key, KeyLimits, NewKey
from llmops.auth.keys import Keys, SignInPaused
from llmops.auth.salts import Salts

__all__ = ["Created", "Key", "KeyLimits", "Keys", "NewKey", "Salts", "SignInPaused"]
