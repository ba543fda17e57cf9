"""Panel: one part of the live view, usable by itself in a notebook."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from lume_diff.models import LUMEModel
from lume_diff.view.frame import Frame
from lume_diff.view.model_source import ModelSource
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from bokeh.document import Document
    from panel.viewable import Viewable

    from lume_diff.view.fan_out import FanOut


class Panel(ABC):
    """Show part of a source.

    A subclass says in `suits` whether it has anything to show, builds its Bokeh models once in `build`, and patches
    their data in `update`. What takes time goes into `prepare`, which runs outside of the page's event loop, and is
    worked out by ``frame.once(key, make)`` so that all viewers share it; what takes longer than a tenth of a second
    goes to ``self.source.background``. A facility adds a panel in one file and names it among the entry points
    ``lume_diff.panels``.

    Args:
        source: what to show, or a model, which is then followed until `close`.
        writable: of a model: whether the panel may write to it.

    Example:
        >>> class Charge(Panel):  # doctest: +SKIP
        ...     title = "Charge"
        ...     def build(self):
        ...         import panel as pn
        ...         self.pane = pn.pane.Str("")
        ...         return self.pane
        ...     def update(self, frame):
        ...         self.pane.object = f"{frame.value('final.charge')} C"
    """

    title: ClassVar[str]  #: heading on the page
    place: ClassVar[int] = 50  #: panels with lower numbers come first on the page
    wide: bool = False  #: whether it takes the whole width of the page

    def __init__(self, source: Source | LUMEModel, writable: bool = False) -> None:
        self._owns_source = isinstance(source, LUMEModel)
        self.source: Source = ModelSource(source, writable).start() if isinstance(source, LUMEModel) else source
        self._fan_out: FanOut | None = None

    # -- what a subclass writes ------------------------------------------------------------------------------

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether there is anything to show of a source."""
        return True

    @classmethod
    def for_page(cls, source: Source) -> Sequence[Panel]:
        """Return the panels of this class that the page of a source begins with."""
        return [cls(source)]

    @property
    def names(self) -> Sequence[str]:
        """Variables that are shown."""
        return ()

    @abstractmethod
    def build(self) -> Viewable:
        """Make what is shown; called once."""

    @abstractmethod
    def update(self, frame: Frame) -> None:
        """Show a frame, by patching what `build` has made.

        Called in the page's event loop with the newest frame only, some times a second at most, and at least once a
        second, with the same frame again if there is no newer one, so that ages go on.
        """

    def prepare(self, frame: Frame) -> None:
        """Work out by ``frame.once`` what `update` will need; called before it, in another thread."""

    def close(self) -> None:
        """Let everything go; may be called again. A subclass that holds something extends this."""
        if self._fan_out is not None:
            self._fan_out.close()
            self._fan_out = None
        if self._owns_source:
            self.source.close()

    # -- for everyone ----------------------------------------------------------------------------------------

    @cached_property
    def _built(self) -> Viewable:
        built = self.build()
        frame = self.source.latest()
        self.prepare(frame)
        self.update(frame)
        return built

    def view(self) -> Viewable:
        """Return what is shown, to be placed in any layout of Panel; it is made when first asked for."""
        return self._built

    def refresh(self) -> None:
        """Show the newest frame again, because somebody chose something; on a page as soon as that is worked out.

        Callbacks of widgets call this and change no Bokeh model themselves: they do not hold the document.
        """
        import panel as pn

        from lume_diff.view.turns import Turns

        document = pn.state.curdoc
        if document is None:
            self.update(self.source.latest())
            return
        turns = Turns(document)

        def work() -> None:  # not in the event loop, where all pages would wait for it
            with contextlib.suppress(Exception):  # the update meets it too, and tells
                self.prepare(self.source.latest())
            turns.ask(lambda: self._update_in(document))

        threading.Thread(target=work, name="view choice", daemon=True).start()

    def _update_in(self, document: Document) -> None:
        from panel.io.document import hold

        with hold(document):
            self.update(self.source.latest())

    def __panel__(self) -> Viewable:
        self.follow()
        return self.view()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        """Show the panel in a notebook, and let it follow from then on."""
        from lume_diff.view.extension import load_extension

        load_extension()
        return self.__panel__()._repr_mimebundle_(include, exclude)

    def servable(self) -> Viewable:
        """Show the panel where ``panel serve`` runs this notebook or script."""
        return self.__panel__().servable(title=self.title)

    def follow(self) -> Panel:
        """Show every change from now on; on the page of `lume_diff.view` that happens anyway."""
        import panel as pn

        from lume_diff.view.fan_out import FanOut
        from lume_diff.view.viewer import Viewer

        if self._fan_out is None:
            self.view()  # frames come from another thread, to what has been built
            document = pn.state.curdoc
            self._fan_out = FanOut(self.source)
            self._fan_out.add(Viewer([self], document))
            if document is not None:
                document.on_session_destroyed(lambda context: self.close())
        return self
