package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// What two kinds have in common is their text, and not what they open.
type common interface{ String() string }

func throughInterface(model credential.Credential[scope.Model], any any, s policy.Scoped, tools *credential.Broker[scope.Tool]) {
	var c common = model
	chargeIt(c)                                   // want "cannot use c"
	chargeIt(any)                                 // want "cannot use any"
	_ = credential.Credential[scope.Tool](any)    // want "need type assertion"
	_ = tools.Client(s)                           // want "need type assertion"
	_ = tools.Client(s.Any())                     // want "cannot use s.Any"
	_ = model.(credential.Credential[scope.Tool]) // want "not an interface"
	switch model.(type) {                         // want "not an interface"
	}
}

func chargeIt(credential.Credential[scope.Tool]) {}
