package nocompile

import (
	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

type (
	toolKey               = credential.Credential[scope.Tool]
	modelKey              = credential.Credential[scope.Model]
	ownTool               credential.Credential[scope.Tool]
	either[S scope.Scope] = credential.Credential[S]
)

func alias(model modelKey, tool toolKey) {
	tool = model                                            // want "cannot use model"
	_ = toolKey(model)                                      // want "cannot convert model"
	_ = ownTool(model)                                      // want "cannot convert model"
	_ = either[scope.Tool](model)                           // want "cannot convert model"
	_, _ = ownTool(tool).Secret()                           // want "no field or method Secret"
	_ = []toolKey{model}                                    // want "cannot use model"
	_ = map[string]toolKey{"": model}                       // want "cannot use model"
	_ = []toolKey([]modelKey{model})                        // want "cannot convert"
	_ = (*toolKey)(&model)                                  // want "cannot convert"
	var f func() toolKey = func() modelKey { return model } // want "cannot use .func"
	var c chan toolKey = make(chan modelKey)                // want "cannot use make"
	_, _ = f, c
}
