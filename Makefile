# Seven front doors. The work is in scripts/, each of which also runs on its own.
.DEFAULT_GOAL := help
.PHONY: help deps demo test test-nitro soak lint bench

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## Install what a build and the tests need (the only step that may need root)
	@scripts/deps.sh all

demo: ## Seal and open 100,000 log records with an embedded Kafka and KMS, and show it
	@scripts/demo.sh

test: ## Run every test, and ten seconds of each fuzz target
	@scripts/test.sh

test-nitro: ## Boot enclave images in QEMU, compare measurements, send a column through
	@scripts/test_nitro.sh

soak: ## Run the long tests: a million records through every fault, 100 MB messages, more fuzzing
	@scripts/soak.sh

lint: ## Check format, lints, dependency trees, licences and documents
	@scripts/lint.sh

bench: ## Measure, write benchmarks/results/ and plots (ONLY=values,topic for some)
	@scripts/bench.sh
