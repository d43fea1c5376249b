package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
	"github.com/taskcred/taskcred/scope"
)

func compare(a, b credential.Credential[scope.Tool], s, t secret.Text, u, v identity.Subject) {
	_ = a == b                                         // want "cannot compare|cannot be compared"
	_ = s == t                                         // want "cannot compare|cannot be compared"
	_ = u == v                                         // want "cannot compare|cannot be compared"
	_ = map[credential.Credential[scope.Tool]]string{} // want "invalid map key type"
	_ = string(s)                                      // want "cannot convert s"
}
