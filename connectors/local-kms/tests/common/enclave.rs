//! A program in an enclave, as a key service sees it: documents of a development root, and the key that they bind.
