package nocompile

import (
	"context"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

type handler func(context.Context, credential.Credential[scope.Tool]) error

type registry struct{ refund handler }

func forModel(context.Context, credential.Credential[scope.Model]) error { return nil }

func funcs(ctx context.Context, model credential.Credential[scope.Model]) {
	_ = registry{forModel}                                                                                                                 // want "cannot use forModel"
	_ = handler(forModel)                                                                                                                  // want "cannot convert forModel"
	var h handler = forModel                                                                                                               // want "cannot use forModel"
	_ = h(ctx, model)                                                                                                                      // want "cannot use model"
	var _ func(context.Context, scope.Tool) (credential.Credential[scope.Tool], error) = (*credential.Broker[scope.Model])(nil).Credential // want "cannot use"
}
