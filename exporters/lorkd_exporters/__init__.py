"""One module a target; `lorkd_deploy.runtime` says what each of them must offer."""
