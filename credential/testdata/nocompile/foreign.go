package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

type derived scope.Tool

type embedding struct{ scope.Tool }

type foreign struct {
	a credential.Credential[int]       // want "does not satisfy"
	b credential.Credential[derived]   // want "does not satisfy"
	c credential.Credential[embedding] // want "does not satisfy"
	d credential.Credential[scope.Any] // want "does not satisfy"
	e scope.Scope                      // want "outside a type constraint"
}
