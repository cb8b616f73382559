"""Models on this machine: real files, verified, resumable. Imports neither torch nor huggingface_hub.

fetch.get("musicgen-small", env)      download it, or what is missing of it
find.here("facebook/musicgen-small", env)   where it is, without a network
find.inventory(env)                   every set, and what there is of it
verify.quick(folder), verify.full(folder), verify.check("musicgen-small", env)
remove.remove("musicgen-small", env)
"""
