"""Knowledge distillation: a small network learns from the logits of a large one."""

import functools

import keras
from keras import ops


class Student(keras.Model):
    """A functional model whose training loss also asks a teacher (Hinton et al., arXiv:1503.02531, section 2).

    Both see the same augmented images. The loss on val stays the plain one. The layers are those of the model that it
    is made of, and the teacher is not among them: neither trained, nor counted, nor saved.
    """

    @classmethod
    def of(cls, model, teacher, temperature, share):
        """A student with the layers of a model.

        Args:
            model: from `zoo.build`.
            teacher: takes the same images, returns logits `(batch, classes)`; computes in inference mode.
            temperature: by which both sides' logits are divided before the softmax; above 1 it shows what the teacher
                thinks of the classes that it did not choose.
            share: of the teacher in the loss, in [0, 1]; the rest is the recipe's own loss.
        """
        student = cls(model.input, model.output, name=model.name)
        student.ask = functools.partial(teacher, training=False)  # behind a function, or Keras would make it a layer
        student.temperature, student.share = temperature, share
        return student

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The recipe's loss, and in training its mean with the teacher's, which is as large at every temperature."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        wanted = ops.softmax(ops.stop_gradient(ops.cast(self.ask(x), "float32")) / self.temperature)
        found = ops.log_softmax(ops.cast(y_pred, "float32") / self.temperature)
        apart = ops.sum(wanted * (ops.log(wanted + 1e-9) - found), axis=-1)  # Kullback-Leibler divergence
        if sample_weight is not None:  # class weights count in both parts
            apart = apart * ops.cast(sample_weight, "float32")
        return (1 - self.share) * loss + self.share * self.temperature**2 * ops.mean(apart)
