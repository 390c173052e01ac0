"""`org/name@revision` -> files of the Hub, in the Hub's own cache.

    name.py -> listing.py -> choose.py -> transfer.py -> fetch.py
    what       which files   those        one file,      all of them,
    was typed  there are     needed       checked        one bar

huggingface_hub brings the token, the session (proxies, certificates, offline mode), the addresses
and the environment variables: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT. What it
downloaded before is used, and what is downloaded here is found by it. The bytes are received here,
because version 2.4.0 begins a file again after an interruption (file_download.py,
`_download_to_tmp_and_move`) and compares sizes, not hashes (`http_get`).
"""
