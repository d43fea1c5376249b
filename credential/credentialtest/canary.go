package credentialtest

import "crypto/rand"

// Canary returns a secret for a test: "CNRY" and 24 random letters and digits.
// Secrets in tests are generated, so that one that is found in a log is a leak
// and one that is found in a repository is not.
func Canary() string { return "CNRY" + rand.Text()[:24] }
