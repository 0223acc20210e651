"""Other runtimes on the same network, for ``int8d bench --vs``. Needs the extra ``bench``; nothing else imports it."""
