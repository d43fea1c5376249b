package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

type disguised struct{ scope.Model }

type worn struct {
	credential.Credential[scope.Model]
}

func chargeTool(credential.Credential[scope.Tool]) {}

func embed(d disguised, w worn, tools *credential.Broker[scope.Tool]) {
	_ = tools.Client(d)                                 // want "cannot use d"
	_ = tools.Client(d.Model)                           // want "cannot use d.Model"
	_ = scope.Tool(d)                                   // want "cannot convert d"
	chargeTool(w)                                       // want "cannot use w"
	chargeTool(w.Credential)                            // want "cannot use w.Credential"
	_ = credential.Credential[scope.Tool](w.Credential) // want "cannot convert"
	_ = struct {
		credential.Credential[scope.Tool]
	}(w) // want "cannot convert w"
}
