"""Where vectors live. One file per backend; ``base`` is the contract, ``memory`` the reference."""
