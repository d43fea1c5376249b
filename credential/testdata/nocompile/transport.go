package nocompile

import (
	"context"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/scope"
)

func transports(ctx context.Context, models *credential.Broker[scope.Model], t *credential.Transport[scope.Model], s scope.Tool) {
	var _ *credential.Transport[scope.Tool] = t                                    // want "cannot use t"
	_ = (*credential.Transport[scope.Tool])(t)                                     // want "cannot convert t"
	var _ *credential.Transport[scope.Tool] = models.Transport(scope.Model{}, nil) // want "cannot use models.Transport"
	_ = models.Transport(s, nil)                                                   // want "cannot use s"
	_, _ = models.Credential(ctx, s)                                               // want "cannot use s"
	_ = &credential.Transport[scope.Tool]{}.scope                                  // want "cannot refer to unexported field scope"
	_ = credential.Broker[scope.Any]{}                                             // want "does not satisfy"
	_ = credential.TransportOptions{Task: ctx}                                     // want "cannot use ctx"
}
