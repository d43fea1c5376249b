package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

func chargeCard(credential.Credential[scope.Tool]) {}

func assign(model credential.Credential[scope.Model], found credential.Credential[scope.Retrieval]) {
	chargeCard(model)                               // want "cannot use model"
	chargeCard(found)                               // want "cannot use found"
	var c credential.Credential[scope.Tool] = model // want "cannot use model"
	_ = c
}
