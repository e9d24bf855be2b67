"""One module per target; `lorkd_deploy.runtime` says what each of them must offer."""
