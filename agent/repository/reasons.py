"""Why an update is not taken: a code for machines, a sentence for people.

``CODES`` is the list of them all; docs/updates.md prints it.
"""

from __future__ import annotations

from agent.errors import Int8dError

CODES = {
    # The repository and its metadata
    "unreachable": "the repository can't be reached",
    "not_found": "the repository has no such file",
    "not_a_repository": "what answers is no repository, for example a captive portal's page",
    "metadata_rollback": "metadata is older than what was seen before",
    "release_rollback": "the release is older than the committed one",
    "expired": "the repository's metadata has expired: it is frozen, or nobody refreshed it",
    "mix_and_match": "metadata files of different states of the repository",
    "wrong_signature": "metadata is signed by a key that the root does not name",
    "too_few_signatures": "metadata has fewer signatures than its role's threshold",
    "endless_data": "more bytes came than were announced or are allowed",
    "too_slow": "bytes came more slowly than updates.min_bytes_per_s",
    "truncated": "fewer bytes came than were announced",
    "damaged": "the file's bytes are not those that were signed",
    "bad_root": "updates.root is not a root that can be trusted",
    "floors": "what the device remembers of the repository can't be read",
    "clock": "the clock is behind the time that the repository has signed",
    # This device
    "no_space": "there is not enough free space",
    "disk": "the state folder can't be written",
    "too_large": "the release is larger than updates.max_bytes",
    "no_key": "the release is encrypted, and this device has no key for it",
    "not_installed": "there is nothing to go back to",
    "busy": "too many wishes wait already",
    "internal": "a bug of int8d; its log says more",
    "interrupted": "the device was stopped in the middle",
    # The model
    "not_a_model": "the file is not a model that can run here",
    "golden_differs": "golden inputs do not give the golden outputs",
    "latency_budget": "slower than its budget on this box",
    "memory_budget": "takes more memory than its budget",
    "crashed": "the process that tested it died",
    "hung": "its test, or loading it, did not end in time",
    "shadow_errors": "it failed on live inputs that the model in service answers",
    "shadow_disagrees": "it agrees with the model in service less often than updates.min_agreement",
    "failed_starts": "the service did not live through its probation",
    "errors": "it failed too often in its probation",
    "latency": "it was too slow in its probation",
    "withdrawn": "its publisher has withdrawn it",
    "by_hand": "somebody asked for the previous release",
}


class Refused(Int8dError):
    """An update that is not taken, or not now. The model in service is not touched.

    code: of ``CODES``.
    """

    def __init__(self, code: str, message: str = "") -> None:
        assert code in CODES, code
        super().__init__(message or CODES[code])
        self.code = code
